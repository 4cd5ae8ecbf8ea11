package main

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"time"

	"github.com/hashicorp/terraform-plugin-framework/datasource"
	"github.com/hashicorp/terraform-plugin-framework/provider"
	"github.com/hashicorp/terraform-plugin-framework/provider/schema"
	"github.com/hashicorp/terraform-plugin-framework/resource"
	"github.com/hashicorp/terraform-plugin-framework/types"
)

// disk is what the resources share: where the world lies and whether this identity may change it.
type disk struct {
	root     string
	readOnly bool
}

type world struct{}

type worldModel struct {
	Root types.String `tfsdk:"root"`
}

func newWorld() provider.Provider { return &world{} }

func (*world) Metadata(_ context.Context, _ provider.MetadataRequest, resp *provider.MetadataResponse) {
	resp.TypeName = "world"
}

func (*world) Schema(_ context.Context, _ provider.SchemaRequest, resp *provider.SchemaResponse) {
	resp.Schema = schema.Schema{Attributes: map[string]schema.Attribute{
		"root": schema.StringAttribute{
			Optional:    true,
			Description: "The folder of the world; WORLD_ROOT where it is not set.",
		},
	}}
}

func (*world) Configure(ctx context.Context, req provider.ConfigureRequest, resp *provider.ConfigureResponse) {
	var config worldModel
	resp.Diagnostics.Append(req.Config.Get(ctx, &config)...)
	root := config.Root.ValueString()
	if root == "" {
		root = os.Getenv("WORLD_ROOT")
	}
	if root == "" {
		resp.Diagnostics.AddError("The world has no root", "Set `root` in the provider block or WORLD_ROOT in the environment.")
		return
	}
	shared := &disk{root: root, readOnly: os.Getenv("WORLD_READONLY") == "1"}
	resp.ResourceData = shared
	resp.DataSourceData = shared
}

func (*world) Resources(context.Context) []func() resource.Resource {
	return []func() resource.Resource{func() resource.Resource { return &file{} }}
}

func (*world) DataSources(context.Context) []func() datasource.DataSource { return nil }

// place resolves a path inside the root.
func (d *disk) place(path string) string { return filepath.Join(d.root, filepath.Clean("/"+path)) }

// note appends one line to the log of the world, in one write.
func (d *disk) note(operation, path string) error {
	out, err := os.OpenFile(filepath.Join(d.root, ".world-log"), os.O_APPEND|os.O_CREATE|os.O_WRONLY, 0o644)
	if err != nil {
		return err
	}
	defer out.Close()
	_, err = fmt.Fprintf(out, "%s %s %s\n", time.Now().UTC().Format(time.RFC3339Nano), operation, path)
	return err
}
