package tlsrpt

import (
	"encoding/base64"
	"fmt"
	"time"

	"github.com/penstock/penstock/mail/message"
	"github.com/penstock/penstock/mail/smtp"
)

// mail.go: a report as a message. RFC 8460, Section 5.3.

// Mail is a report that is to be sent by mail. It should be signed with DKIM for the domain of
// From (RFC 8460, Section 3). It says TLS-Required: No (RFC 8689, Section 3), so that policies
// do not hold for it: what it reports may be what would keep it back.
type Mail struct {
	From, To smtp.Path
	// Content is the message, header and body in ASCII, in lines that end with CRLF.
	Content []byte
}

const mailDate = "Mon, 02 Jan 2006 15:04:05 -0700" // RFC 5322, Section 3.3

// mail makes the message with a compressed report.
func (s sender) mail(from, to smtp.Path, d day, domain string, compressed []byte, now time.Time) (Mail, error) {
	boundary := "=_" + s.mark(d, domain) // "_" after "=" is in no base64 and not in the text
	var b []byte
	for _, f := range [][2]string{
		{"From", "<" + from.String() + ">"},
		{"To", "<" + to.String() + ">"},
		{"Subject", fmt.Sprintf("Report Domain: %s Submitter: %s Report-ID: <%s>", domain, s.submitter, s.id(d, domain))},
		{"Date", now.Format(mailDate)},
		{"Message-ID", "<tlsrpt-" + s.id(d, domain) + ">"},
		{"TLS-Report-Domain", domain},
		{"TLS-Report-Submitter", s.submitter},
		{"TLS-Required", "No"},
		{"Auto-Submitted", "auto-generated"}, // RFC 3834, Section 5
		{"MIME-Version", "1.0"},
		{"Content-Type", `multipart/report; report-type="tlsrpt"; boundary="` + boundary + `"`},
	} {
		field, err := message.NewField(f[0], f[1])
		if err != nil {
			return Mail{}, fmt.Errorf("tlsrpt: mail: %s: %w", f[0], err)
		}
		b = append(b, field.Raw()...)
	}
	b = append(b, "\r\nThis is a report about TLS, in parts of MIME.\r\n\r\n--"+boundary+
		"\r\nContent-Type: text/plain; charset=us-ascii\r\n\r\n"...)
	b = append(b, s.words(d, domain)...)
	disposition, err := message.NewField("Content-Disposition", `attachment; filename="`+s.filename(d, domain)+`"`)
	if err != nil {
		return Mail{}, fmt.Errorf("tlsrpt: mail: %w", err)
	}
	b = append(b, "\r\n--"+boundary+"\r\nContent-Type: application/tlsrpt+gzip\r\nContent-Transfer-Encoding: base64\r\n"...)
	b = append(append(b, disposition.Raw()...), "\r\n"...)
	b = appendBase64(b, compressed)
	b = append(b, "\r\n--"+boundary+"--\r\n"...)
	return Mail{From: from, To: to, Content: b}, nil
}

// words is what a person reads.
func (s sender) words(d day, domain string) string {
	return fmt.Sprintf("This tells how TLS went when %s\r\nsent mail to %s\r\non %s, by UTC. The report is attached, as RFC 8460 has it.\r\n",
		s.submitter, domain, d)
}

// appendBase64 appends lines of 76 characters. RFC 2045, Section 6.8.
func appendBase64(b, data []byte) []byte {
	const line = 57 // octets
	for len(data) > line {
		b = append(base64.StdEncoding.AppendEncode(b, data[:line]), "\r\n"...)
		data = data[line:]
	}
	return base64.StdEncoding.AppendEncode(b, data)
}
