"""A corpus in tokens: written once by several processes, verified, mixed, read by documents."""
