"""Devices and what differs between them: events that are read later, and values where no bank is."""
