package peers

// nodemailer.go sends and builds mail with nodemailer, which thousands of web
// applications send with. It comes from the npm registry into the user's cache
// directory, once, in the version that nodemailer/package-lock.json pins together
// with its checksum; where there is no npm, Debian's package is taken.

import (
	"bytes"
	"context"
	_ "embed"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"syscall"
	"testing"
	"time"
)

//go:embed nodemailer/driver.js
var nodeDriver []byte

//go:embed nodemailer/package.json
var nodePackage []byte

//go:embed nodemailer/package-lock.json
var nodeLock []byte

// installLimit bounds the installation, which loads half a megabyte.
const installLimit = time.Minute

// debianNode is where Debian's packages put Node modules.
const debianNode = "/usr/share/nodejs"

// NodeTransport says where nodemailer sends to and how. Zero fields are left to
// nodemailer's defaults.
type NodeTransport struct {
	Host       string `json:"host"`
	Port       int    `json:"port"`
	LMTP       bool   `json:"lmtp,omitempty"`
	Secure     bool   `json:"secure,omitempty"`     // TLS at once; else STARTTLS when offered
	RequireTLS bool   `json:"requireTLS,omitempty"` // fail without STARTTLS
	IgnoreTLS  bool   `json:"ignoreTLS,omitempty"`  // never STARTTLS
	Name       string `json:"name,omitempty"`       // for EHLO
	Pool       bool   `json:"pool,omitempty"`       // several messages over one connection

	// MaxConnections bounds a pool; default 5.
	MaxConnections int `json:"maxConnections,omitempty"`

	TLS  *NodeTLS  `json:"tls,omitempty"`
	Auth *NodeAuth `json:"auth,omitempty"`
}

// NodeTLS says whom nodemailer trusts.
type NodeTLS struct {
	CA                 string `json:"ca,omitempty"`         // PEM; empty: the authorities of Node
	ServerName         string `json:"servername,omitempty"` // default Host
	RejectUnauthorized bool   `json:"rejectUnauthorized"`   // false: any certificate
}

// NodeAuth is a login. The method is the server's and nodemailer's choice, but with a token,
// where it is XOAUTH2.
type NodeAuth struct {
	User string `json:"user"`
	Pass string `json:"pass,omitempty"`

	// Type is OAuth2 for a login with AccessToken, and empty with a password.
	Type        string `json:"type,omitempty"`
	AccessToken string `json:"accessToken,omitempty"`
}

// NodeMessage is a message with the field names of nodemailer: from, to, subject,
// text, html, attachments, headers, raw, envelope, dsn and so on. Its values must
// be what encoding/json can write. Bytes go in as a string beside an "encoding" of
// base64, both in an attachment and in raw: {"content": ..., "encoding": ...}.
type NodeMessage map[string]any

// NodeError is an error as nodemailer reports it.
type NodeError struct {
	Message      string `json:"message"`
	Code         string `json:"code"`         // EENVELOPE, EMESSAGE, ETLS, EAUTH, ...
	Command      string `json:"command"`      // of SMTP, where it failed
	Response     string `json:"response"`     // the server's reply
	ResponseCode int    `json:"responseCode"` // its code; 0 if there was none
	Recipient    string `json:"recipient"`    // if the error is about one recipient
}

// NodeResult is what became of one message.
type NodeResult struct {
	Accepted  []string    `json:"accepted"`
	Rejected  []string    `json:"rejected"`
	Response  string      `json:"response"` // the last reply of the server
	MessageID string      `json:"messageId"`
	Errors    []NodeError `json:"errors"` // one for each rejected recipient
	Error     *NodeError  `json:"error"`  // nil if the message was sent, to some at least
	Raw       []byte      `json:"raw"`    // of NodeBuild: the message
}

// Nodemailer sends the messages one after the other over the transport and
// returns one result for each. Errors of sending are in the results; it ends the
// test only if nodemailer itself cannot be run, or runs longer than 30 s.
func Nodemailer(t testing.TB, transport NodeTransport, messages ...NodeMessage) []NodeResult {
	t.Helper()
	return runNode(t, &transport, messages)
}

// NodeBuild returns the bytes that nodemailer makes of each message, with CRLF
// line ends, and sends nothing. It ends the test if one cannot be built.
func NodeBuild(t testing.TB, messages ...NodeMessage) [][]byte {
	t.Helper()
	var built [][]byte
	for i, result := range runNode(t, nil, messages) {
		if result.Error != nil {
			t.Fatalf("peers: nodemailer cannot build message %d: %+v", i, *result.Error)
		}
		built = append(built, result.Raw)
	}
	return built
}

func runNode(t testing.TB, transport *NodeTransport, messages []NodeMessage) []NodeResult {
	t.Helper()
	node := program(t, "nodejs", "node")
	modules := nodeModules(t)
	input, err := json.Marshal(map[string]any{"transport": transport, "messages": messages})
	if err != nil {
		t.Fatalf("peers: messages for nodemailer: %v", err)
	}
	driver := filepath.Join(t.TempDir(), "driver.js")
	if err := os.WriteFile(driver, nodeDriver, 0o644); err != nil {
		t.Fatalf("peers: %v", err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), runLimit)
	defer cancel()
	var stdout, stderr bytes.Buffer
	cmd := command(ctx, node, driver)
	cmd.Env = append(cmd.Environ(), "NODE_PATH="+modules)
	cmd.Stdin, cmd.Stdout, cmd.Stderr = bytes.NewReader(input), &stdout, &stderr
	if err := cmd.Run(); err != nil {
		t.Fatalf("peers: run nodemailer: %v\n%s", errors.Join(ctx.Err(), err), tail(stderr.String()))
	}
	var output struct{ Results []NodeResult }
	if err := json.Unmarshal(stdout.Bytes(), &output); err != nil {
		t.Fatalf("peers: output of nodemailer: %v\n%s%s", err, tail(stdout.String()), tail(stderr.String()))
	}
	if len(output.Results) != len(messages) {
		t.Fatalf("peers: nodemailer gave %d results for %d messages", len(output.Results), len(messages))
	}
	return output.Results
}

// nodeModules returns the directory that holds nodemailer, and installs it there
// if it must.
func nodeModules(t testing.TB) string {
	t.Helper()
	npm, npmErr := exec.LookPath("npm")
	if npmErr != nil {
		if _, err := os.Stat(filepath.Join(debianNode, "nodemailer")); err == nil {
			return debianNode
		}
	}
	cache, err := os.UserCacheDir()
	if err != nil {
		Missing(t, "a cache directory for nodemailer", err.Error())
	}
	dir := filepath.Join(cache, "penstock-test", "nodemailer")
	modules := filepath.Join(dir, "node_modules")
	if nodeInstalled(dir) {
		return modules
	}
	if npmErr != nil {
		Missing(t, "nodemailer", "there is no npm to install it with; run `make test-deps`, or install Debian's package node-nodemailer")
	}
	if err := installNode(t, npm, dir); err != nil {
		Missing(t, "nodemailer", err.Error())
	}
	return modules
}

// nodeInstalled reports whether the pinned version is there. The copy of the lock
// file is written last, so it vouches for the rest.
func nodeInstalled(dir string) bool {
	const limit = 1 << 20
	if _, err := os.Stat(filepath.Join(dir, "node_modules", "nodemailer", "package.json")); err != nil {
		return false
	}
	return bytes.Equal(readLimited(filepath.Join(dir, "installed.json"), limit), nodeLock)
}

// installNode installs nodemailer. A file lock keeps the test binaries of other
// packages, and install.sh, from doing the same at the same time.
func installNode(t testing.TB, npm, dir string) error {
	t.Helper()
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return err
	}
	unlock, err := lockFile(t, filepath.Join(dir, "lock"))
	if err != nil {
		return err
	}
	defer unlock()
	if nodeInstalled(dir) { // while we waited for the lock
		return nil
	}
	if err := os.WriteFile(filepath.Join(dir, "package.json"), nodePackage, 0o644); err != nil {
		return err
	}
	if err := os.WriteFile(filepath.Join(dir, "package-lock.json"), nodeLock, 0o644); err != nil {
		return err
	}
	// "ci" installs what the lock file says or nothing, and checks the checksum;
	// a package's own install scripts have no business here.
	ctx, cancel := context.WithTimeout(t.Context(), installLimit)
	defer cancel()
	out, err := command(ctx, npm, "ci", "--prefix", dir, "--ignore-scripts", "--no-audit", "--no-fund").CombinedOutput()
	if err != nil {
		return fmt.Errorf("npm ci: %w\n%s", errors.Join(ctx.Err(), err), tail(string(out)))
	}
	return os.WriteFile(filepath.Join(dir, "installed.json"), nodeLock, 0o644)
}

// lockFile takes a lock that the kernel gives back when the process ends.
func lockFile(t testing.TB, path string) (unlock func(), err error) {
	t.Helper()
	f, err := os.OpenFile(path, os.O_CREATE|os.O_RDWR, 0o644)
	if err != nil {
		return nil, err
	}
	limit := time.NewTimer(installLimit + time.Second)
	defer limit.Stop()
	tick := time.NewTicker(10 * pollEvery)
	defer tick.Stop()
	for {
		err := syscall.Flock(int(f.Fd()), syscall.LOCK_EX|syscall.LOCK_NB)
		if err == nil {
			return func() { f.Close() }, nil
		}
		select {
		case <-tick.C:
		case <-limit.C:
			f.Close()
			return nil, fmt.Errorf("lock %s: %w", path, err)
		}
	}
}
