package peers

import "syscall"

// ownGroup makes a child lead its own process group. The kernel ends it when we
// die without clean-up, as a test binary does that runs into its time limit.
func ownGroup() *syscall.SysProcAttr {
	return &syscall.SysProcAttr{Setpgid: true, Pdeathsig: syscall.SIGTERM}
}
