"""Hook specifications, the declarations that hooks return, and the discovery of plugins with isolation."""
