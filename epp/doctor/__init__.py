"""What is wrong with a pool, its picker, its model servers and what leads to them; and what to do about it."""
