"""The servers that ours is measured beside."""
