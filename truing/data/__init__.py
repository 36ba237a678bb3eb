"""Records of the loop, the files they come from, and the token batches they become."""
