package lab

import (
	"context"
	"encoding/binary"
	"fmt"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"strings"
	"syscall"
	"unsafe"
)

// isolate makes the command run in new network and mount namespaces: as root, or else as
// root of a new user namespace, where the kernel lets ordinary users have one. It returns
// errNoNamespace if neither works.
func isolate(ctx context.Context, cmd *exec.Cmd) error {
	for _, attr := range isolations() {
		try := exec.CommandContext(ctx, "/bin/true")
		try.SysProcAttr = attr()
		if try.Run() == nil {
			cmd.SysProcAttr = attr()
			return nil
		}
	}
	return errNoNamespace
}

// isolations are the ways to get there. All of them are unshared after the fork, which also
// keeps what is mounted there from being seen here.
func isolations() []func() *syscall.SysProcAttr {
	const spaces = syscall.CLONE_NEWNET | syscall.CLONE_NEWNS
	asRoot := func() *syscall.SysProcAttr {
		return &syscall.SysProcAttr{Unshareflags: spaces, Pdeathsig: syscall.SIGKILL}
	}
	asUser := func() *syscall.SysProcAttr {
		return &syscall.SysProcAttr{
			Cloneflags:   syscall.CLONE_NEWUSER,
			Unshareflags: spaces,
			UidMappings:  []syscall.SysProcIDMap{{ContainerID: 0, HostID: os.Getuid(), Size: 1}},
			GidMappings:  []syscall.SysProcIDMap{{ContainerID: 0, HostID: os.Getgid(), Size: 1}},
			Pdeathsig:    syscall.SIGKILL,
		}
	}
	if os.Getuid() == 0 {
		return []func() *syscall.SysProcAttr{asRoot}
	}
	return []func() *syscall.SysProcAttr{asUser}
}

// furnish brings the loopback up. The kernel gives it 127.0.0.1/8 and ::1 then.
func furnish() error {
	// Ten datagrams may wait at a unix socket by default. Postfix's own log is such a socket, and
	// its logger, which writes to it too, waits for itself when it is full. It is no harm if the
	// kernel does not let us.
	_ = os.WriteFile("/proc/sys/net/unix/max_dgram_qlen", []byte("1000"), 0o644)
	fd, err := syscall.Socket(syscall.AF_INET, syscall.SOCK_DGRAM|syscall.SOCK_CLOEXEC, 0)
	if err != nil {
		return fmt.Errorf("socket: %w", err)
	}
	defer syscall.Close(fd)
	// struct ifreq: a name of 16 octets, then a union of 24 that begins with the flags.
	var request [40]byte
	copy(request[:], "lo")
	binary.NativeEndian.PutUint16(request[16:], syscall.IFF_UP|syscall.IFF_RUNNING)
	if _, _, errno := syscall.Syscall(syscall.SYS_IOCTL, uintptr(fd), syscall.SIOCSIFFLAGS, uintptr(unsafe.Pointer(&request))); errno != 0 {
		return fmt.Errorf("bring lo up: %w", errno)
	}
	return nil
}

// assign gives the loopback another address of IPv6. All of 127.0.0.0/8 is there by itself,
// but of IPv6 only ::1.
func assign(addr netip.Addr) error {
	lo, err := net.InterfaceByName("lo")
	if err != nil {
		return err
	}
	fd, err := syscall.Socket(syscall.AF_INET6, syscall.SOCK_DGRAM|syscall.SOCK_CLOEXEC, 0)
	if err != nil {
		return fmt.Errorf("socket: %w", err)
	}
	defer syscall.Close(fd)
	// struct in6_ifreq: the address, the length of its prefix, the interface.
	var request [24]byte
	copy(request[:], addr.AsSlice())
	binary.NativeEndian.PutUint32(request[16:], 128)
	binary.NativeEndian.PutUint32(request[20:], uint32(lo.Index))
	if _, _, errno := syscall.Syscall(syscall.SYS_IOCTL, uintptr(fd), syscall.SIOCSIFADDR, uintptr(unsafe.Pointer(&request))); errno != 0 {
		return fmt.Errorf("assign %v to lo: %w", addr, errno)
	}
	return nil
}

// alone tells whether this is a user namespace of one account, as asUser makes it.
func alone() bool {
	b, err := os.ReadFile("/proc/self/uid_map")
	fields := strings.Fields(string(b)) // inside, outside, how many
	return err != nil || len(fields) < 3 || fields[2] == "1"
}

// cover shows the file instead of /etc/resolv.conf to this process and its children.
func cover(file string) error {
	if err := syscall.Mount(file, "/etc/resolv.conf", "", syscall.MS_BIND, ""); err != nil {
		return fmt.Errorf("mount %s over /etc/resolv.conf: %w", file, err)
	}
	return nil
}
