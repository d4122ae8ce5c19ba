"""Raw tables in, prepared dataset out, batches from it."""
