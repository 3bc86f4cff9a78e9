"""The ResNet family as Flax linen modules."""
