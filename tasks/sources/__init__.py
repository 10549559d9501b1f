"""Define the task sources that ship with metatrain, one file each; `tasks.registry` names them."""
