"""The process and the machine: devices, memory, signals, launching ranks."""
