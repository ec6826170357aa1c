"""Key scope, key adaptation, and the policy and the coordinates of the patch embedding."""
