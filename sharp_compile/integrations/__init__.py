"""What other libraries need to work with a pruned model, one library a file."""
