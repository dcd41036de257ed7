"""The process and the machine: device, allocator, signals, and the launcher of ranks."""
