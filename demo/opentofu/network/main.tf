terraform {
  required_providers {
    world = { source = "evenkeel/world" }
  }
}

variable "environment" { type = string }
variable "gateway" { type = string }

resource "world_file" "gateway" {
  path    = "${var.environment}/network/gateway"
  content = var.gateway
}

resource "world_file" "routes" {
  for_each = toset(["eu", "us"])
  path     = "${var.environment}/network/routes-${each.key}"
  content  = "via ${var.gateway}"
}

output "gateway" { value = world_file.gateway.content }
