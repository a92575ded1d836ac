"""Images: what bytes say of themselves, their pixels, and the form in which they are published."""
