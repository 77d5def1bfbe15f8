"""Behind the training thread: windows become points, and what is on its way is in a state."""
