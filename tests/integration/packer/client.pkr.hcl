# The least that Packer's amazon plugin does in earnest, in two builds. amazon-ebs writes a file and makes an image of the
# machine; amazon-ebssurrogate boots that image and copies the file into a fresh file system on an empty second disk, of
# which it makes another image. So the second build shows that what the first one made boots and holds what was written.

packer {
  required_version = ">= 1.12"
  required_plugins {
    amazon = {
      source  = "github.com/hashicorp/amazon"
      version = ">= 1.8"
    }
  }
}

variable "source_ami" {
  type = string
}

variable "ssh_port" {
  type = number
}

variable "marker" {
  type = string
}

variable "manifest" {
  type = string
}

locals {
  mount = "/mnt/fresh"
}

source "amazon-ebs" "client" {
  ami_name                = "client-ebs"
  source_ami              = var.source_ami
  instance_type           = "t3.medium"
  ssh_username            = "admin"
  ssh_port                = var.ssh_port
  ssh_timeout             = "15m" # without hardware virtualisation, on a busy machine
  temporary_key_pair_type = "ed25519"
  # The plugin's own default is the whole world.
  temporary_security_group_source_cidrs = ["127.0.0.0/8"]
  imds_support                          = "v2.0"
  deprecate_at                          = "2034-01-01T00:00:00Z"
  deregistration_protection {
    enabled = true
  }
  metadata_options {
    http_tokens = "required"
  }
  aws_polling {
    delay_seconds = 2
    max_attempts  = 300
  }
  run_tags = {
    Name = "builder"
  }
  skip_ami_run_tags = true
  tags = {
    Name   = "client"
    Source = "{{ .SourceAMI }}"
  }
  snapshot_tags = {
    Part = "root"
  }
}

source "amazon-ebssurrogate" "client" {
  ami_name                              = "client-surrogate"
  ami_virtualization_type               = "hvm"
  source_ami                            = var.source_ami
  instance_type                         = "t3.medium"
  ssh_username                          = "admin"
  ssh_port                              = var.ssh_port
  ssh_timeout                           = "15m"
  temporary_key_pair_type               = "ed25519"
  temporary_security_group_source_cidrs = ["127.0.0.0/8"]
  imds_support                          = "v2.0"
  metadata_options {
    http_tokens = "required"
  }
  aws_polling {
    delay_seconds = 2
    max_attempts  = 300
  }
  run_tags = {
    Name = "builder"
  }
  tags = {
    Name   = "client"
    Source = "{{ .SourceAMI }}"
  }
  launch_block_device_mappings {
    device_name           = "/dev/xvdf"
    volume_size           = 1
    volume_type           = "gp3"
    delete_on_termination = true
  }
  ami_root_device {
    source_device_name    = "/dev/xvdf"
    device_name           = "/dev/xvda"
    volume_size           = 1
    volume_type           = "gp3"
    delete_on_termination = true
  }
}

build {
  sources = ["source.amazon-ebs.client", "source.amazon-ebssurrogate.client"]

  provisioner "shell" {
    only   = ["amazon-ebs.client"]
    inline = ["echo ${var.marker} | sudo tee /etc/marker", "sync"]
  }

  provisioner "shell" {
    only = ["amazon-ebssurrogate.client"]
    inline = [
      "disk=$(lsblk --noheadings --paths --output NAME,SIZE | awk '$2 == \"1G\" { print $1 }')",
      "sudo mkfs.ext4 -q $disk",
      "sudo mkdir ${local.mount}",
      "sudo mount $disk ${local.mount}",
      "sudo cp /etc/marker ${local.mount}/",
      "sudo umount ${local.mount}",
    ]
  }

  post-processor "manifest" {
    output = var.manifest
  }
}
