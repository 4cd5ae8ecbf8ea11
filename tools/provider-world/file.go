package main

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"time"

	"github.com/hashicorp/terraform-plugin-framework/resource"
	"github.com/hashicorp/terraform-plugin-framework/resource/schema"
	"github.com/hashicorp/terraform-plugin-framework/resource/schema/planmodifier"
	"github.com/hashicorp/terraform-plugin-framework/resource/schema/stringplanmodifier"
	"github.com/hashicorp/terraform-plugin-framework/types"
)

// file is `world_file`: one file, with an attribute of each sort that a plan can hold.
type file struct{ disk *disk }

type fileModel struct {
	Path    types.String `tfsdk:"path"`
	Content types.String `tfsdk:"content"`
	Secret  types.String `tfsdk:"secret"`
	Note    types.String `tfsdk:"note"`
	Delay   types.String `tfsdk:"delay"`
	Fail    types.String `tfsdk:"fail"`
	ID      types.String `tfsdk:"id"`
	Sha256  types.String `tfsdk:"sha256"`
}

func (*file) Metadata(_ context.Context, req resource.MetadataRequest, resp *resource.MetadataResponse) {
	resp.TypeName = req.ProviderTypeName + "_file"
}

func (*file) Schema(_ context.Context, _ resource.SchemaRequest, resp *resource.SchemaResponse) {
	resp.Schema = schema.Schema{Attributes: map[string]schema.Attribute{
		"path": schema.StringAttribute{
			Required: true, Description: "Where the file lies below the root; another path is another file.",
			PlanModifiers: []planmodifier.String{stringplanmodifier.RequiresReplace()},
		},
		"content": schema.StringAttribute{Required: true, Description: "The text of the file; updates in place."},
		"secret":  schema.StringAttribute{Optional: true, Sensitive: true, Description: "Kept in PATH.secret, readable by the owner alone."},
		"note": schema.StringAttribute{
			Optional: true, Computed: true, Description: "Kept in PATH.note; where it is not set, whatever stands there.",
			PlanModifiers: []planmodifier.String{stringplanmodifier.UseStateForUnknown()},
		},
		"delay": schema.StringAttribute{Optional: true, Description: "How long each write takes, such as 2s."},
		"fail":  schema.StringAttribute{Optional: true, Description: "With what message each write fails."},
		"id": schema.StringAttribute{
			Computed: true, Description: "The path.", PlanModifiers: []planmodifier.String{stringplanmodifier.UseStateForUnknown()},
		},
		"sha256": schema.StringAttribute{Computed: true, Description: "The hash of the content, known after each write."},
	}}
}

func (f *file) Configure(_ context.Context, req resource.ConfigureRequest, _ *resource.ConfigureResponse) {
	if shared, ok := req.ProviderData.(*disk); ok {
		f.disk = shared
	}
}

// optional reads a file that may be absent.
func optional(path string) (types.String, error) {
	text, err := os.ReadFile(path)
	if errors.Is(err, fs.ErrNotExist) {
		return types.StringNull(), nil
	}
	return types.StringValue(string(text)), err
}

func (f *file) read(model *fileModel) (bool, error) {
	place := f.disk.place(model.Path.ValueString())
	content, err := optional(place)
	if err != nil || content.IsNull() {
		return false, err
	}
	model.Content = content
	if model.Secret, err = optional(place + ".secret"); err != nil {
		return false, err
	}
	if model.Note, err = optional(place + ".note"); err != nil {
		return false, err
	}
	sum := sha256.Sum256([]byte(content.ValueString()))
	model.Sha256 = types.StringValue(hex.EncodeToString(sum[:]))
	model.ID = model.Path
	return true, nil
}

func (f *file) write(operation string, model *fileModel) error {
	if f.disk.readOnly {
		return errors.New("this identity may only read the world (WORLD_READONLY=1)")
	}
	if !model.Delay.IsNull() {
		delay, err := time.ParseDuration(model.Delay.ValueString())
		if err != nil {
			return err
		}
		time.Sleep(delay)
	}
	if message := model.Fail.ValueString(); message != "" {
		return errors.New(message)
	}
	place := f.disk.place(model.Path.ValueString())
	if err := os.MkdirAll(filepath.Dir(place), 0o755); err != nil {
		return err
	}
	if err := beside(place+".secret", model.Secret, 0o600); err != nil {
		return err
	}
	if err := beside(place+".note", model.Note, 0o644); err != nil {
		return err
	}
	if err := os.WriteFile(place, []byte(model.Content.ValueString()), 0o644); err != nil {
		return err
	}
	if err := f.disk.note(operation, model.Path.ValueString()); err != nil {
		return err
	}
	_, err := f.read(model)
	return err
}

// beside writes or removes a companion of the file.
func beside(path string, value types.String, mode os.FileMode) error {
	if value.IsUnknown() {
		return nil // computed: whatever stands there stays
	}
	if value.IsNull() {
		if err := os.Remove(path); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return err
		}
		return nil
	}
	return os.WriteFile(path, []byte(value.ValueString()), mode)
}

func (f *file) Create(ctx context.Context, req resource.CreateRequest, resp *resource.CreateResponse) {
	var model fileModel
	resp.Diagnostics.Append(req.Plan.Get(ctx, &model)...)
	if resp.Diagnostics.HasError() {
		return
	}
	if err := f.write("create", &model); err != nil {
		resp.Diagnostics.AddError("Could not create the file", err.Error())
		return
	}
	resp.Diagnostics.Append(resp.State.Set(ctx, &model)...)
}

func (f *file) Read(ctx context.Context, req resource.ReadRequest, resp *resource.ReadResponse) {
	var model fileModel
	resp.Diagnostics.Append(req.State.Get(ctx, &model)...)
	if resp.Diagnostics.HasError() {
		return
	}
	there, err := f.read(&model)
	if err != nil {
		resp.Diagnostics.AddError("Could not read the file", err.Error())
		return
	}
	if !there {
		resp.State.RemoveResource(ctx)
		return
	}
	resp.Diagnostics.Append(resp.State.Set(ctx, &model)...)
}

func (f *file) Update(ctx context.Context, req resource.UpdateRequest, resp *resource.UpdateResponse) {
	var model fileModel
	resp.Diagnostics.Append(req.Plan.Get(ctx, &model)...)
	if resp.Diagnostics.HasError() {
		return
	}
	if err := f.write("update", &model); err != nil {
		resp.Diagnostics.AddError("Could not update the file", err.Error())
		return
	}
	resp.Diagnostics.Append(resp.State.Set(ctx, &model)...)
}

func (f *file) Delete(ctx context.Context, req resource.DeleteRequest, resp *resource.DeleteResponse) {
	var model fileModel
	resp.Diagnostics.Append(req.State.Get(ctx, &model)...)
	if resp.Diagnostics.HasError() {
		return
	}
	if f.disk.readOnly {
		resp.Diagnostics.AddError("Could not delete the file", "this identity may only read the world (WORLD_READONLY=1)")
		return
	}
	place := f.disk.place(model.Path.ValueString())
	for _, path := range []string{place, place + ".secret", place + ".note"} {
		if err := os.Remove(path); err != nil && !errors.Is(err, fs.ErrNotExist) {
			resp.Diagnostics.AddError("Could not delete the file", err.Error())
			return
		}
	}
	if err := f.disk.note("delete", model.Path.ValueString()); err != nil {
		resp.Diagnostics.AddError("Could not write the log", err.Error())
	}
}
