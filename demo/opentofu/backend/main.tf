terraform {
  required_providers {
    world = { source = "evenkeel/world" }
  }
}

variable "environment" { type = string }
variable "release" { type = string }
variable "upstream" { type = string }

resource "world_file" "release" {
  path    = "${var.environment}/backend/release"
  content = var.release
  secret  = "session-key-of-${var.environment}"
}

resource "world_file" "config" {
  path    = "${var.environment}/backend/config"
  content = "upstream = ${var.upstream}"
}

output "release" { value = world_file.release.content }
