"""The only room that imports lmms_eval."""
