package config

import (
	"errors"
	"net/netip"
	"path/filepath"
	"strings"
)

// admin.go holds the section of the admin API.

// Admin says where the admin API listens and who may use it. It is off while Tokens is
// empty.
type Admin struct {
	Address ListenAddress `key:"address" default:"127.0.0.1:8025" doc:"What the admin API listens on: host:port, or unix:/path. It speaks HTTP without TLS: keep it on loopback or a socket, or put something with TLS in front."`
	Tokens  File          `key:"tokens" doc:"Who may use it: file:PATH of the file that gateway token new writes. The admin API is off while this is not set. The file may be missing at first, and is read again when it changes."`
	Hosts   []Host        `key:"hosts" doc:"Names that the Host header of a request may have. The address that is listened on is always one of them, and so is localhost over loopback and a socket, or everywhere while there are no names here."`
	Metrics Bool          `key:"metrics" default:"true" doc:"true gives the figures in Prometheus' form at /metrics, to tokens with the role read, and counts the filters' calls for it."`
}

// A File is the path of a file, written file:PATH.
type File string

// UnmarshalText reads file:PATH.
func (f *File) UnmarshalText(text []byte) error {
	path, ok := strings.CutPrefix(string(text), "file:")
	if !ok || path == "" {
		return errors.New("is not a file: write file:PATH, not what the file holds") // which may be a secret
	}
	*f = File(filepath.Clean(path))
	return nil
}

func (File) describe() string { return "file:PATH" }

func (f *File) rebase(dir string) { *f = File(inDir(dir, string(*f))) }

// A Host is a domain name or an address, in its plain form.
type Host string

// UnmarshalText reads a domain name or an address, without a port.
func (h *Host) UnmarshalText(text []byte) error {
	host, err := parseHost(strings.TrimSuffix(strings.TrimPrefix(string(text), "["), "]"))
	*h = Host(host)
	return err
}

func (Host) describe() string { return "domain name or address" }

// Bool is true or false; an empty value is the default of its key.
type Bool string

// The values of Bool.
const (
	True  Bool = "true"
	False Bool = "false"
)

func (Bool) words() []string { return []string{"true", "false"} }

// admin checks the admin section.
func (k *checker) admin() {
	a := k.c.Admin
	k.socket("admin.address", a.Address.Network, a.Address.Address)
	if a.Tokens == "" {
		if k.c.origins.has("admin") && !k.broken("admin") && !k.broken("admin.tokens") {
			k.warnf("admin", "the admin API is off while tokens is not set")
		}
		return
	}
	if i, ok := a.Address.overlapping(k.taken()); ok {
		k.errorf("admin.address", "%s cannot be had next to %s of listeners[%d]", a.Address, k.c.Listeners[i].Address[0], i)
	}
	if a.Address.Network == "systemd" {
		k.errorf("admin.address", "%s is for listeners; write host:port or unix:/path", a.Address)
	}
	if a.Address.Network == "tcp" && !a.Address.loopback() {
		k.warnf("admin.address", "%s can be reached from outside, and tokens would pass in clear text", a.Address)
	}
}

// loopback tells whether only this machine can connect.
func (l ListenAddress) loopback() bool {
	ap, err := netip.ParseAddrPort(l.Address)
	return err == nil && ap.Addr().IsLoopback() || strings.HasPrefix(l.Address, "localhost:")
}
