"""What knows no video and no face: commands, atomic files, worker processes, Ray, devices. Imports no other room."""
