"""Attribution methods behind one signature."""
