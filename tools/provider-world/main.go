// Provider world keeps files on a disk and calls them resources.
//
// It exists so that Evenkeel's demo and tests have a world that can drift, be slow, fail and keep secrets without any
// cloud. Each write is appended to `.world-log` in the root, which is how a test can prove that nothing ran twice.
package main

import (
	"context"
	"log"

	"github.com/hashicorp/terraform-plugin-framework/providerserver"
)

func main() {
	err := providerserver.Serve(context.Background(), newWorld, providerserver.ServeOpts{
		Address: "registry.opentofu.org/evenkeel/world",
	})
	if err != nil {
		log.Fatal(err)
	}
}
