"""Public weight formats: containers of tensors, one bidirectional rule table per layout, and what a load found."""
