package api

import "time"

// tlsrpt.go: reports that others have sent about TLS with our hosts (RFC 8460). All of a report
// is what its sender wrote: it may be wrong, and from somebody else.

// The limits of one list of reports.
const (
	TLSReportListDefault = 100
	TLSReportListMax     = 1000
)

// TLSReportPage is a part of the list of reports, the latest days first.
type TLSReportPage struct {
	// Reports are without their policies.
	Reports []TLSReport `json:"reports"`
	// Next is where to go on: the parameter after of the next request. Empty at the end.
	Next string `json:"next,omitempty"`
}

// TLSReport is a report.
type TLSReport struct {
	ID       string    `json:"id"`
	Received time.Time `json:"received"`
	// Sender is the reverse-path that it came from, Client the address.
	Sender string `json:"sender"`
	Client string `json:"client,omitempty"`
	// What follows is what it says of itself.
	Organization string    `json:"organization"`
	Contact      string    `json:"contact,omitempty"`
	ReportID     string    `json:"report_id"`
	Start        time.Time `json:"start,omitzero"`
	End          time.Time `json:"end,omitzero"`
	// Domains are those of its policies. Successful and Failed count sessions under all of them.
	Domains    []string          `json:"domains"`
	Successful int64             `json:"successful"`
	Failed     int64             `json:"failed"`
	Policies   []TLSReportPolicy `json:"policies,omitempty"`
}

// TLSReportPolicy tells how it went under one policy.
type TLSReportPolicy struct {
	Type       string             `json:"type"` // tlsa, sts or no-policy-found
	Domain     string             `json:"domain"`
	Strings    []string           `json:"strings,omitempty"`
	MXHosts    []string           `json:"mx_hosts,omitempty"`
	Successful int64              `json:"successful"`
	Failed     int64              `json:"failed"`
	Failures   []TLSReportFailure `json:"failures,omitempty"`
}

// TLSReportFailure tells of sessions that failed for one reason.
type TLSReportFailure struct {
	Type          string `json:"type"` // such as certificate-expired
	Count         int64  `json:"count"`
	SendingIP     string `json:"sending_ip,omitempty"`
	ReceivingHost string `json:"receiving_host,omitempty"`
	ReceivingHelo string `json:"receiving_helo,omitempty"`
	ReceivingIP   string `json:"receiving_ip,omitempty"`
	Reason        string `json:"reason,omitempty"`
	Additional    string `json:"additional,omitempty"`
}
