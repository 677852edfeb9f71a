"""This machine and this process: device, memory, interrupts, progress, seeds."""
