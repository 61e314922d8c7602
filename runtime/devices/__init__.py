"""Devices that `sampan plan` knows: a JSON file each, named as the user types it. docs/adding.md says what is in it."""
