"""Images: decoded and brought to the form in which they are published."""
