# What grub.cfg (images/os/boot) uses beyond the modules that are built in by default.
GRUB_BUILDIN:append:copal = " cat cmp echo halt loadenv probe reboot regexp search_fs_file search_label sleep true"
