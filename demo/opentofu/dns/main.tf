terraform {
  required_providers {
    world = { source = "evenkeel/world" }
  }
}

variable "environment" { type = string }
variable "gateway" { type = string }

resource "world_file" "zone" {
  path    = "${var.environment}/dns/zone"
  content = "gateway.${var.environment}.example. A ${var.gateway}"
}

output "zone" { value = world_file.zone.path }
