"""What a request costs, beside the bare servers it could have gone through: see README.md."""
