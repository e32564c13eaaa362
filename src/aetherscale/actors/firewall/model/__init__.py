"""What a security group means. Pure."""
