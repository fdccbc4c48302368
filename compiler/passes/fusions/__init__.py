"""What Fuse is made of, one pattern per file."""
