"""What people read about a chain: one HTML page, and the model card of the exported bundle.

Both are made from manifests and published files alone, so they say nothing that the
record does not hold.
"""
