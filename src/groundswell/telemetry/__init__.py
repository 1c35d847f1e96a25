"""What can be seen from outside. No prompt, answer or key comes near any of it."""
