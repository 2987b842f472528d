"""A corpus in tokens: made once by many workers, verified, mixed, read by documents."""
