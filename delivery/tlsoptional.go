package delivery

import (
	"bytes"
	"errors"
	"io"
	"strings"

	"github.com/penstock/penstock/mail/message"
)

// tlsoptional.go reads the field TLS-Required of a message's header (RFC 8689, Section 3). It lets
// a message go although the other side's policy about TLS cannot be kept, such as a report about
// just that. It counts for those alone whom we trust: whoever else writes it could have mail that is
// forwarded in clear text.

// maxHeader is how much of a message is looked at.
const maxHeader = 1 << 20

var errHeaderRead = errors.New("delivery: the header has been read")

// headerReader keeps what is written up to the end of the header section, and ends the write there.
type headerReader struct {
	b      bytes.Buffer
	finder message.EndFinder
}

func (h *headerReader) Write(p []byte) (int, error) {
	h.b.Write(p[:min(len(p), maxHeader-h.b.Len())])
	if n, ok := h.finder.End(h.b.Bytes()); ok {
		h.b.Truncate(n)
		return 0, errHeaderRead
	}
	if h.b.Len() >= maxHeader {
		return 0, errHeaderRead
	}
	return len(p), nil
}

// tlsOptional tells whether the header of a message says that TLS is optional. One that says it
// twice, or anything else, says nothing.
func tlsOptional(content io.WriterTo) (bool, error) {
	var h headerReader
	if _, err := content.WriteTo(&h); err != nil && !errors.Is(err, errHeaderRead) {
		return false, err
	}
	header, _ := message.Parse(h.b.Bytes())
	return header.Count("TLS-Required") == 1 && strings.EqualFold(header.Get("TLS-Required"), "no"), nil
}

// noteTLS sets Origin.TLSOptional of a message that is to be kept. REQUIRETLS comes before the field
// (RFC 8689, Section 4.1).
func (k *Keeping) noteTLS() error {
	k.Origin.TLSOptional = false
	if !k.Origin.Trusted || k.Sender.RequireTLS || k.Content == nil {
		return nil
	}
	var err error
	k.Origin.TLSOptional, err = tlsOptional(k.Content)
	return err
}
