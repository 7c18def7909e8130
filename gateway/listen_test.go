package gateway

import (
	"bytes"
	"fmt"
	"io"
	"io/fs"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"testing"

	"github.com/penstock/penstock/internal/peers"
)

func TestParseListenAddress(t *testing.T) {
	for _, tc := range []struct {
		text             string
		network, address string // empty: refused
	}{
		{":25", "tcp", ":25"},
		{"127.0.0.1:0", "tcp", "127.0.0.1:0"},
		{"mx.test:25", "tcp", "mx.test:25"},
		{"[::1]:25", "tcp", "[::1]:25"},
		{"[fe80::1%eth0]:25", "tcp", "[fe80::1%eth0]:25"},
		{"unix:/run/penstock.sock", "unix", "/run/penstock.sock"},
		{"unix:@penstock", "unix", "@penstock"},
		{"systemd:mx", "systemd", "mx"},
		{"systemd:0", "systemd", "0"},
		{"25", "", ""},
		{"", "", ""},
		{":smtp", "", ""},
		{":65536", "", ""},
		{":-1", "", ""},
		{"::1:25", "", ""},
		{"[::1]", "", ""},
		{"[mx%eth0]:25", "", ""},
		{"unix:", "", ""},
		{"unix:relative", "", ""},
		{"unix:/a\x00b", "", ""},
		{"systemd:", "", ""},
		{"systemd:a:b", "", ""},
		{"systemd:a b", "", ""},
	} {
		a, err := parseListenAddress(tc.text)
		if (err == nil) != (tc.network != "") {
			t.Errorf("%q: %+v, %v", tc.text, a, err)
		} else if err == nil && (a.network != tc.network || a.address != tc.address || a.String() != tc.text) {
			t.Errorf("%q: %+v, written %s", tc.text, a, a)
		}
	}
	for _, a := range []listenAddress{{"udp", ":25", 0}, {"tcp", ":25", 0o600}, {"unix", "/a", fs.ModeSetuid | 0o600}} {
		if a.validate() == nil {
			t.Errorf("%+v is taken", a)
		}
	}
}

func TestOpenListeners(t *testing.T) {
	dir := t.TempDir()
	sock := filepath.Join(dir, "s")
	list := []listenAddress{{"tcp", "127.0.0.1:0", 0}, {"unix", sock, 0o622}}
	ls, err := openListeners(list, nil)
	if err != nil || len(ls) != 2 {
		t.Fatal(ls, err)
	}
	if info, err := os.Stat(sock); err != nil || runtime.GOOS != "windows" && info.Mode().Perm() != 0o622 {
		t.Errorf("%v, %v", info.Mode(), err)
	}
	// The second fails, so the first must not stay.
	taken := ls[0].Addr().String()
	free, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	again := free.Addr().String()
	free.Close()
	for _, bad := range []listenAddress{{"tcp", taken, 0}, {"unix", sock, 0}, {"systemd", "mx", 0}, {"unix", filepath.Join(dir, "none", "s"), 0}} {
		if _, err := openListeners([]listenAddress{{"tcp", again, 0}, bad}, nil); err == nil || !strings.Contains(err.Error(), bad.String()) {
			t.Errorf("%v: %v", bad, err)
		}
		if c, err := net.Dial("tcp", again); err == nil {
			c.Close()
			t.Errorf("%v: the first listener stayed", bad)
		}
	}
	ls[0].Close()
	// A socket that is left behind goes; a file does not.
	ls[1].(*net.UnixListener).SetUnlinkOnClose(false)
	ls[1].Close()
	ls, err = openListeners([]listenAddress{{"unix", sock, 0}}, nil)
	if err != nil {
		t.Fatal(err)
	}
	ls[0].Close()
	file := filepath.Join(dir, "file")
	if err := os.WriteFile(file, []byte("mail"), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := openListeners([]listenAddress{{"unix", file, 0}}, nil); err == nil {
		t.Error("a file gave way to a socket")
	}
	if data, err := os.ReadFile(file); string(data) != "mail" {
		t.Error(err)
	}
}

func TestZone(t *testing.T) {
	ifaces, err := net.Interfaces()
	if err != nil {
		t.Fatal(err)
	}
	i := slices.IndexFunc(ifaces, func(i net.Interface) bool { return i.Flags&net.FlagLoopback != 0 })
	if i < 0 {
		t.Fatal("there is no loopback interface")
	}
	a, err := parseListenAddress("[::1%" + ifaces[i].Name + "]:0")
	if err != nil {
		t.Fatal(err)
	}
	ls, err := openListeners([]listenAddress{a}, nil)
	if err != nil {
		peers.Missing(t, "IPv6 on loopback", err.Error())
	}
	ls[0].Close()
}

func TestAnnouncedSockets(t *testing.T) {
	for _, tc := range []struct {
		pid, fds, names string
		want            string // "count names", or "error"
	}{
		{"7", "2", "mx:submission", "2 [mx submission]"},
		{"7", "2", "", "2 [ ]"},
		{"7", "0", "", "0 []"},
		{"8", "2", "", "0 []"}, // for the process that started us
		{"", "2", "", "0 []"},
		{"7", "", "", "0 []"},
		{"7", "2", "mx", "error"},
		{"7", "-1", "", "error"},
		{"7", "x", "", "error"},
		{"7", "99999999", "", "error"},
	} {
		env := map[string]string{"LISTEN_PID": tc.pid, "LISTEN_FDS": tc.fds, "LISTEN_FDNAMES": tc.names}
		n, names, err := announcedSockets(7, func(k string) string { return env[k] })
		got := fmt.Sprint(n, names)
		if err != nil {
			got = "error"
		}
		if strings.ReplaceAll(got, " [", "[") != strings.ReplaceAll(tc.want, " [", "[") {
			t.Errorf("%+v: %s", tc, got)
		}
	}
}

// childEnv tells the test binary that it was started by TestSocketActivation.
const childEnv = "PENSTOCK_TEST_SOCKETS"

// This binary runs once more, as a service with sockets that were opened for it.
func TestSocketActivation(t *testing.T) {
	if runtime.GOOS == "windows" {
		peers.Missing(t, "socket activation", "run the test on Unix")
	}
	tcp, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer tcp.Close()
	path := filepath.Join(t.TempDir(), "s")
	unix, err := net.Listen("unix", path)
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Close()
	udp, err := net.ListenPacket("udp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer udp.Close()
	idle, err := net.Dial("tcp", tcp.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	defer idle.Close()
	// The shell knows the number of the process that it becomes.
	cmd := exec.Command("sh", "-c", `LISTEN_PID=$$ exec "$0" "$@"`, os.Args[0], "-test.run=^TestSocketService$", "-test.v")
	cmd.Env = append(os.Environ(), childEnv+"=1", "LISTEN_FDS=4", "LISTEN_FDNAMES=mx:mx:datagrams:client")
	for _, s := range []any{tcp, unix, udp, idle} {
		f, err := s.(interface{ File() (*os.File, error) }).File()
		if err != nil {
			t.Fatal(err)
		}
		defer f.Close()
		cmd.ExtraFiles = append(cmd.ExtraFiles, f)
	}
	var out bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &out
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	c, err := net.Dial("unix", path) // of the other socket idle is the client
	if err != nil {
		t.Error(err)
	} else {
		defer c.Close()
	}
	if err := cmd.Wait(); err != nil || !strings.Contains(out.String(), "--- PASS: TestSocketService") {
		t.Fatalf("%v\n%s", err, out.String())
	}
	if _, err := os.Stat(path); err != nil {
		t.Error("the service removed a socket that is not its own:", err)
	}
}

// TestSocketService is the service of TestSocketActivation.
func TestSocketService(t *testing.T) {
	if os.Getenv(childEnv) == "" {
		return
	}
	s, err := takeSockets()
	if err != nil || s == nil {
		t.Fatal(s, err)
	}
	defer s.close()
	if os.Getenv("LISTEN_FDS") != "" || os.Getenv("LISTEN_PID") != "" {
		t.Error("our children would think the sockets theirs")
	}
	if got := strings.Join(s.unused(), " "); got != "mx mx datagrams client" {
		t.Error(got)
	}
	for _, bad := range []string{"submission", "4", "-1", "datagrams", "2", "client", "3"} {
		if ls, err := s.listeners(bad); err == nil {
			t.Errorf("%s: %v", bad, ls)
		}
	}
	ls, err := openListeners([]listenAddress{{"systemd", "mx", 0}}, s)
	if err != nil || len(ls) != 2 {
		t.Fatal(ls, err)
	}
	if _, err := s.listeners("0"); err == nil {
		t.Error("one socket for two listeners")
	}
	if got := strings.Join(s.unused(), " "); got != "datagrams client" {
		t.Error(got)
	}
	for _, l := range ls {
		c, err := l.Accept()
		if err != nil {
			t.Fatal(err)
		}
		io.WriteString(c, "220 x\r\n")
		c.Close()
		l.Close()
	}
	if again, err := takeSockets(); again != nil || err != nil {
		t.Error(again, err)
	}
}
