"""The plugins that ship: policy, one flat module per feature."""
