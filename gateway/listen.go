package gateway

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"net/netip"
	"os"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"time"
)

// listen.go opens what to listen on: TCP, unix sockets, and sockets that the service
// manager has opened for us. All that is asked for is opened, or nothing is.
//
// Sockets of the service manager come as open files from number 3 on, by the rules of
// sd_listen_fds(3). They are taken once, at the start of the process, and the environment
// that tells of them is cleared, so that no child thinks they are its own. They stay open
// until the process ends: a listener is a copy, and closing it loses no client that is
// connecting while a new process takes over.
//
// Wiring: Listen calls takeSockets once if any address is of network systemd, then
// openListeners for the addresses of each listener, with what parseListenAddress made of
// them, and closes what it has opened if one listener fails. Afterwards sockets.unused
// names what nobody asked for, which is worth a warning; sockets.close belongs to the end
// of Shutdown.

// listenAddress is one thing to listen on.
type listenAddress struct {
	// network is "tcp", "unix" or "systemd".
	network string
	// address is host:port, a path (on Linux also "@name" for one without a file), or the
	// name or the number of a socket of the service manager.
	address string
	// mode is the permissions of a unix socket; 0 leaves them to the umask.
	mode fs.FileMode
}

// String returns the address as it is configured.
func (a listenAddress) String() string {
	if a.network == "tcp" {
		return a.address
	}
	return a.network + ":" + a.address
}

// parseListenAddress reads "host:port", "[fe80::1%eth0]:port", ":port", "unix:/path",
// "systemd:name" and "systemd:0".
func parseListenAddress(s string) (listenAddress, error) {
	network, rest, ok := strings.Cut(s, ":")
	a := listenAddress{network: network, address: rest}
	switch {
	case ok && network == "unix":
		return a, a.validate()
	case ok && network == "systemd":
		return a, a.validate()
	}
	a = listenAddress{network: "tcp", address: s}
	return a, a.validate()
}

// validate returns what is wrong with the address.
func (a listenAddress) validate() error {
	if a.mode&^fs.ModePerm != 0 || a.mode != 0 && a.network != "unix" {
		return fmt.Errorf("%s: mode %o is for unix sockets, and permissions alone", a, a.mode)
	}
	switch a.network {
	case "tcp":
		return validateTCP(a.address)
	case "unix":
		if a.address == "" || a.address[0] != '/' && a.address[0] != '@' || strings.ContainsRune(a.address, 0) {
			return fmt.Errorf("%s: a unix socket has an absolute path", a)
		}
	case "systemd":
		if !validSocketName(a.address) {
			return fmt.Errorf("%s: a socket of the service manager has a name or a number", a)
		}
	default:
		return fmt.Errorf("network %q is none of tcp, unix, systemd", a.network)
	}
	return nil
}

func validateTCP(address string) error {
	host, port, err := net.SplitHostPort(address)
	if err != nil {
		return fmt.Errorf("%s: write host:port, [address]:port, unix:/path or systemd:name", address)
	}
	if _, err := strconv.ParseUint(port, 10, 16); err != nil {
		return fmt.Errorf("%s: port %q is no number up to 65535", address, port)
	}
	if _, err := netip.ParseAddr(host); err != nil && strings.ContainsAny(host, ":%") {
		return fmt.Errorf("%s: %q is no address", address, host)
	}
	return nil
}

// validSocketName: systemd.socket(5) allows what is printable in a name, without colons.
func validSocketName(s string) bool {
	return s != "" && len(s) <= 255 && !strings.ContainsFunc(s, func(r rune) bool { return r <= ' ' || r >= 0x7f || r == ':' })
}

// openListeners opens all addresses, or none and returns why. One name of the service
// manager may stand for several sockets, so there may be more listeners than addresses.
func openListeners(addresses []listenAddress, inherited *sockets) ([]net.Listener, error) {
	var opened []net.Listener
	for _, a := range addresses {
		ls, err := openListener(a, inherited)
		if err != nil {
			for _, l := range opened {
				l.Close()
			}
			return nil, fmt.Errorf("listen on %s: %w", a, err)
		}
		opened = append(opened, ls...)
	}
	return opened, nil
}

func openListener(a listenAddress, inherited *sockets) ([]net.Listener, error) {
	var l net.Listener
	var err error
	switch a.network {
	case "systemd":
		return inherited.listeners(a.address)
	case "unix":
		l, err = listenUnix(a)
	default:
		l, err = net.Listen(a.network, a.address)
	}
	if err != nil {
		return nil, err
	}
	return []net.Listener{l}, nil
}

// listenUnix opens a unix socket. From the moment it is there it can be connected to, so
// its permissions have to be right before: they are set on the descriptor, of which the
// file gets them, and once more on the file for those that the umask took away.
func listenUnix(a listenAddress) (net.Listener, error) {
	named := a.address[0] != '@'
	if named {
		removeStaleSocket(a.address)
	}
	var lc net.ListenConfig
	if named && a.mode != 0 {
		lc.Control = func(_, _ string, c syscall.RawConn) error {
			return c.Control(func(fd uintptr) { restrictSocket(fd, a.mode) })
		}
	}
	l, err := lc.Listen(context.Background(), "unix", a.address)
	if err != nil || !named || a.mode == 0 {
		return l, err
	}
	if err := os.Chmod(a.address, a.mode); err != nil {
		l.Close()
		return nil, err
	}
	return l, nil
}

// removeStaleSocket removes a socket that a process left behind which is gone: nobody
// listens to it. Any other stays, also one that is too busy to answer or that we may not
// connect to, and listening fails.
func removeStaleSocket(path string) {
	info, err := os.Lstat(path)
	if err != nil || info.Mode().Type() != os.ModeSocket {
		return
	}
	c, err := net.DialTimeout("unix", path, time.Second)
	if err == nil {
		c.Close()
	}
	if errors.Is(err, syscall.ECONNREFUSED) {
		os.Remove(path)
	}
}

// firstSocket is the number of the first file that the service manager hands over, and
// maxSockets how many we look at.
const (
	firstSocket = 3
	maxSockets  = 1024
)

// sockets are those that the service manager opened. Nil has none. It is not safe for
// concurrent use.
type sockets struct {
	files []*os.File
	names []string
	used  []bool
}

// takeSockets takes the sockets over that the environment tells of, if they are for this
// process, and clears the environment. Without any it returns nil.
func takeSockets() (*sockets, error) {
	count, names, err := announcedSockets(os.Getpid(), os.Getenv)
	for _, key := range []string{"LISTEN_PID", "LISTEN_FDS", "LISTEN_FDNAMES", "LISTEN_PIDFDID"} {
		os.Unsetenv(key)
	}
	if err != nil {
		return nil, fmt.Errorf("socket activation: %w", err)
	}
	if count == 0 {
		return nil, nil
	}
	s := &sockets{names: names, used: make([]bool, count)}
	for i := range count {
		closeOnExec(firstSocket + i)
		s.files = append(s.files, os.NewFile(uintptr(firstSocket+i), names[i]))
	}
	return s, nil
}

// announcedSockets reads the environment.
func announcedSockets(pid int, getenv func(string) string) (count int, names []string, err error) {
	fds := getenv("LISTEN_FDS")
	if fds == "" || getenv("LISTEN_PID") != strconv.Itoa(pid) {
		return 0, nil, nil // meant for the process that started us, or for nobody
	}
	count, err = strconv.Atoi(fds)
	if err != nil || count < 0 || count > maxSockets {
		return 0, nil, fmt.Errorf("LISTEN_FDS is %q", fds)
	}
	names = make([]string, count)
	if list := getenv("LISTEN_FDNAMES"); list != "" {
		given := strings.Split(list, ":")
		if len(given) != count {
			return 0, nil, fmt.Errorf("LISTEN_FDNAMES has %d names for %d sockets", len(given), count)
		}
		copy(names, given)
	}
	return count, names, nil
}

// listeners returns listeners for all sockets of a name, or for the one of a number.
func (s *sockets) listeners(name string) ([]net.Listener, error) {
	if s == nil {
		return nil, errors.New("the service manager has passed no sockets to this process")
	}
	var which []int
	if i, err := strconv.Atoi(name); err == nil {
		if i < 0 || i >= len(s.files) {
			return nil, fmt.Errorf("there are %d sockets", len(s.files))
		}
		which = append(which, i)
	} else {
		for i, n := range s.names {
			if n == name {
				which = append(which, i)
			}
		}
	}
	if len(which) == 0 {
		return nil, fmt.Errorf("no socket has that name; there are %q", s.names)
	}
	if slices.ContainsFunc(which, func(i int) bool { return s.used[i] }) {
		return nil, errors.New("it is in use by another listener")
	}
	var ls []net.Listener
	for _, i := range which {
		l, err := fileListener(s.files[i])
		if err != nil {
			for _, l := range ls {
				l.Close()
			}
			return nil, fmt.Errorf("socket %d: %w", i, err)
		}
		ls = append(ls, l)
	}
	for _, i := range which {
		s.used[i] = true
	}
	return ls, nil
}

// fileListener returns a listener for a socket that listens for streams.
func fileListener(f *os.File) (net.Listener, error) {
	if !listens(f) {
		return nil, errors.New("it is no socket that listens")
	}
	l, err := net.FileListener(f)
	if err != nil {
		return nil, err
	}
	switch l.(type) {
	case *net.TCPListener, *net.UnixListener:
		return l, nil
	}
	l.Close()
	return nil, fmt.Errorf("it is of network %s", l.Addr().Network())
}

// unused returns the sockets that no listener uses, by name or number.
func (s *sockets) unused() []string {
	var list []string
	for i := 0; s != nil && i < len(s.files); i++ {
		switch {
		case s.used[i]:
		case s.names[i] != "":
			list = append(list, s.names[i])
		default:
			list = append(list, strconv.Itoa(i))
		}
	}
	return list
}

// Sockets are those that the service manager opened for us. Nil is none.
type Sockets struct{ sockets }

// TakeSockets takes over the sockets that the environment tells of, and clears it. It is
// called once, before anything starts other processes, and returns nil if there are none.
func TakeSockets() (*Sockets, error) {
	s, err := takeSockets()
	if s == nil {
		return nil, err
	}
	return &Sockets{*s}, nil
}

// Unused returns those that no listener has, by name or else by number. It is for after
// Listen.
func (s *Sockets) Unused() []string { return s.inner().unused() }

// Close gives up all sockets. Listeners stay.
func (s *Sockets) Close() { s.inner().close() }

func (s *Sockets) inner() *sockets {
	if s == nil {
		return nil
	}
	return &s.sockets
}

// close gives up all sockets; listeners made of them stay.
func (s *sockets) close() {
	if s == nil {
		return
	}
	for _, f := range s.files {
		f.Close()
	}
}
