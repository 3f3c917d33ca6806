"""Draw figures and write pages for people."""
