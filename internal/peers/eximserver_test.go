package peers

import (
	"bytes"
	"testing"
)

// TestEximTakes: it stores what it is sent over TLS. The sender is another Exim.
func TestEximTakes(t *testing.T) {
	c := NewCA(t).Issue(t, "backend.test")
	s := Exim(t, EximServerOptions{CertFile: c.CertFile, KeyFile: c.KeyFile})
	got := EximSend(t, EximOptions{NextHop: s.Addr, Transport: []string{"hosts_require_tls = *", "tls_verify_certificates ="}},
		"a@client.test", []string{"b@mx.test"}, []byte("Subject: a\n\nb\n"))
	if len(got) != 1 || got[0].Status != "sent" || !got[0].Chunked {
		t.Errorf("got %+v, want it sent with BDAT", got)
	}
	if raw := s.Wait(t, 1)[0]; !bytes.HasSuffix(raw, []byte("\n\nb\n")) {
		t.Errorf("got %q", raw)
	}
}
