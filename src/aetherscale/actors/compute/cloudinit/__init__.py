"""The first boot of guests with cloud-init: a disk that says what they are given, and programs that run in them."""
