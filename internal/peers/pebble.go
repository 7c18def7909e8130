package peers

// pebble.go starts Pebble, the small CA for tests of Let's Encrypt, and the DNS server that
// goes with it. Both are Go programs: they are built from the module proxy into the user's
// cache directory, once, in one version.

import (
	"bytes"
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"
)

// pebbleVersion is in install.sh too.
const pebbleVersion = "v2.10.1"

// PebbleOptions says what the CA does.
type PebbleOptions struct {
	// Lifetime of a certificate, in whole seconds. Default 90 days.
	Lifetime time.Duration
}

// PebbleServer is a running CA for ACME. It looks for the answers to its challenges at two
// addresses of 127.0.0.1, whatever the name that is to be proved.
type PebbleServer struct {
	Directory string // URL of the ACME directory
	CA        *CA    // issued the certificate of the ACME API; not of what the API issues
	HTTP01    string // where it looks for the answer to HTTP-01
	TLSALPN01 string // and to TLS-ALPN-01

	manage string // URL of the management API
	client *http.Client
}

// Pebble starts a CA. It ends the test if it does not come up.
func Pebble(t testing.TB, o PebbleOptions) *PebbleServer {
	t.Helper()
	dir := pebblePrograms(t)
	if o.Lifetime == 0 {
		o.Lifetime = 90 * 24 * time.Hour
	}
	p := &PebbleServer{CA: NewCA(t), HTTP01: highPort(t), TLSALPN01: highPort(t)}
	transport := &http.Transport{TLSClientConfig: &tls.Config{RootCAs: p.CA.Pool()}, DisableKeepAlives: true}
	p.client = &http.Client{Transport: transport, Timeout: runLimit}

	names := p.startNames(t, dir)
	p.startCA(t, dir, names, o)
	return p
}

// startNames starts a DNS server for which every name is at 127.0.0.1.
func (p *PebbleServer) startNames(t testing.TB, dir string) (addr string) {
	work := openDir(t, "challtestsrv")
	manage := ""
	launchHTTP(t, "pebble-challtestsrv", work, func() (string, []string) {
		addr, manage = highPort(t), highPort(t)
		return "http://" + manage + "/", []string{"-http01", "", "-https01", "", "-tlsalpn01", "", "-doh", "",
			"-dnsserver", addr, "-management", manage, "-defaultIPv4", "127.0.0.1", "-defaultIPv6", ""}
	}, p.client, filepath.Join(dir, "pebble-challtestsrv"))
	return addr
}

func (p *PebbleServer) startCA(t testing.TB, dir, names string, o PebbleOptions) {
	work := openDir(t, "pebble")
	cert := p.CA.Issue(t, "127.0.0.1")
	launchHTTP(t, "pebble", work, func() (string, []string) {
		api, manage := highPort(t), highPort(t)
		p.Directory, p.manage = "https://"+api+"/dir", "https://"+manage
		config := map[string]any{
			"listenAddress": api, "managementListenAddress": manage,
			"certificate": cert.CertFile, "privateKey": cert.KeyFile,
			"httpPort": port(p.HTTP01), "tlsPort": port(p.TLSALPN01),
			"retryAfter":   map[string]int{"authz": 0, "order": 0}, // the client looks again soon
			"keyAlgorithm": "ecdsa",
			"profiles":     map[string]any{"default": map[string]any{"description": "for tests", "validityPeriod": int(o.Lifetime / time.Second)}},
		}
		text, err := json.Marshal(map[string]any{"pebble": config})
		if err != nil {
			t.Fatalf("peers: %v", err)
		}
		writeFile(t, filepath.Join(work, "pebble.json"), string(text))
		return p.Directory, []string{"-config", filepath.Join(work, "pebble.json"), "-dnsserver", names}
	}, p.client, filepath.Join(dir, "pebble"))
}

func port(addr string) int {
	_, text, _ := net.SplitHostPort(addr)
	n, _ := strconv.Atoi(text) // of an address that we made
	return n
}

// Roots returns a pool with the root that its certificates lead to, which is another one in
// each run.
func (p *PebbleServer) Roots(t testing.TB) *x509.CertPool {
	t.Helper()
	pool := x509.NewCertPool()
	if body := fetch(t, p.client, p.manage+"/roots/0"); !pool.AppendCertsFromPEM(body) {
		t.Fatalf("peers: root of pebble: %q", tail(string(body)))
	}
	return pool
}

// AskRenewal makes the CA say, when it is asked next, that a certificate should have been renewed
// an hour ago (RFC 9773, Section 4.2).
func (p *PebbleServer) AskRenewal(t testing.TB, leaf *x509.Certificate) {
	t.Helper()
	now := time.Now().UTC()
	window := fmt.Sprintf(`{"suggestedWindow": {"start": %q, "end": %q}}`, now.Add(-2*time.Hour).Format(time.RFC3339), now.Add(-time.Hour).Format(time.RFC3339))
	request, err := json.Marshal(map[string]string{
		"certificate": string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: leaf.Raw})), "ariResponse": window,
	})
	if err != nil {
		t.Fatalf("peers: %v", err)
	}
	resp, err := p.client.Post(p.manage+"/set-renewal-info/", "application/json", bytes.NewReader(request))
	if err != nil {
		t.Fatalf("peers: ask pebble for a renewal: %v", err)
	}
	resp.Body.Close()
	if resp.StatusCode != http.StatusOK {
		t.Fatalf("peers: ask pebble for a renewal: %s", resp.Status)
	}
}

func fetch(t testing.TB, client *http.Client, url string) []byte {
	t.Helper()
	resp, err := client.Get(url)
	if err != nil {
		t.Fatalf("peers: %v", err)
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(io.LimitReader(resp.Body, logLimit))
	if err != nil || resp.StatusCode != http.StatusOK {
		t.Fatalf("peers: GET %s: %s, %v", url, resp.Status, err)
	}
	return body
}

// launchHTTP is launch for a server that answers HTTP and does not greet. configure returns the
// URL that will answer and the arguments. The server is stopped when the test ends.
func launchHTTP(t testing.TB, name, dir string, configure func() (url string, args []string), client *http.Client, path string) {
	t.Helper()
	const tries = 3
	for try := 1; ; try++ {
		url, args := configure()
		// The tests' own waits are short; and every third nonce is refused, as real CAs do.
		d, err := startDaemon(name, filepath.Join(dir, "output"), "/usr/bin/env",
			append([]string{"PEBBLE_VA_NOSLEEP=1", "PEBBLE_WFE_NONCEREJECT=30", path}, args...)...)
		if err != nil {
			t.Fatal(err)
		}
		if err = d.awaitHTTP(client, url); err == nil {
			t.Cleanup(func() {
				d.stop()
				if t.Failed() {
					t.Logf("end of the log of %s:\n%s", name, tail(serverLog(dir)))
				}
			})
			return
		}
		d.stop()
		if log := serverLog(dir); try == tries || !strings.Contains(log, "address already in use") {
			t.Fatalf("%v; log:\n%s", err, tail(log))
		}
	}
}

// awaitHTTP waits until a URL is answered, whatever the answer is.
func (d *daemon) awaitHTTP(client *http.Client, url string) error {
	deadline := time.NewTimer(startLimit)
	defer deadline.Stop()
	tick := time.NewTicker(pollEvery)
	defer tick.Stop()
	for {
		resp, err := client.Get(url)
		if err == nil {
			resp.Body.Close()
			return nil
		}
		select {
		case <-d.done:
			return fmt.Errorf("peers: %s ended early: %w", d.name, errors.Join(d.err, err))
		case <-deadline.C:
			return fmt.Errorf("peers: %s is not ready after %v: %w", d.name, startLimit, err)
		case <-tick.C:
		}
	}
}

// pebblePrograms returns the directory of the two programs, and builds them if it must.
func pebblePrograms(t testing.TB) string {
	t.Helper()
	cache, err := os.UserCacheDir()
	if err != nil {
		Missing(t, "a cache directory for pebble", err.Error())
	}
	dir := filepath.Join(cache, "penstock-test", "pebble-"+pebbleVersion)
	if pebbleInstalled(dir) {
		return dir
	}
	if err := installPebble(t, dir); err != nil {
		Missing(t, "pebble", err.Error())
	}
	return dir
}

// pebbleInstalled looks for the program that is installed last.
func pebbleInstalled(dir string) bool {
	_, err := os.Stat(filepath.Join(dir, "pebble"))
	return err == nil
}

// installPebble builds the programs. The go command puts a program in place at once and whole.
func installPebble(t testing.TB, dir string) error {
	t.Helper()
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return err
	}
	unlock, err := lockFile(t, filepath.Join(dir, "lock"))
	if err != nil {
		return err
	}
	defer unlock()
	if pebbleInstalled(dir) { // while we waited for the lock
		return nil
	}
	for _, name := range []string{"pebble-challtestsrv", "pebble"} {
		if err := goInstall(t, dir, "github.com/letsencrypt/pebble/v2/cmd/"+name+"@"+pebbleVersion); err != nil {
			return err
		}
	}
	return nil
}

func goInstall(t testing.TB, dir, program string) error {
	goTool, err := exec.LookPath("go")
	if err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(t.Context(), installLimit)
	defer cancel()
	cmd := command(ctx, goTool, "install", program)
	cmd.Dir = dir // the versions of our own go.mod are not pebble's
	cmd.Env = append(os.Environ(), "GOBIN="+dir)
	if out, err := cmd.CombinedOutput(); err != nil {
		return fmt.Errorf("go install %s: %w\n%s", program, errors.Join(ctx.Err(), err), tail(string(out)))
	}
	return nil
}
