"""Key scope, adaptation and the policy of the patch embedding, and in whose coordinates it is."""
