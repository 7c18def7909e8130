package sasl_test

import (
	"context"
	"fmt"

	"github.com/penstock/penstock/mail/smtp/sasl"
)

// Both ends of one exchange, as AUTH leads it with base64 around each message.
func Example() {
	creds := sasl.Credentials{
		Password: func(_ context.Context, user, password string) error {
			if user != "alice" || password != "wonderland" {
				return sasl.ErrDenied
			}
			return nil
		},
	}
	conn := sasl.Conn{AllowClear: true} // for want of TLS in this example
	conn.Offered = sasl.Available(nil, creds, conn)
	fmt.Println("250 AUTH", conn.Offered)

	account := sasl.Account{User: "alice", Password: "wonderland", AllowClear: true, Offered: conn.Offered}
	client, err := sasl.NewClient(sasl.Choose(conn.Offered, account), account)
	if err != nil {
		fmt.Println(err)
		return
	}
	mechanism, response, err := client.Start()
	if err != nil {
		fmt.Println(err)
		return
	}
	server, err := sasl.New(context.Background(), mechanism, creds, conn)
	if err != nil {
		fmt.Println(err)
		return
	}
	for done := false; !done; {
		var challenge []byte
		if challenge, done, err = server.Next(response); err == nil && !done {
			response, err = client.Next(challenge)
		}
		if err != nil {
			fmt.Println(err)
			return
		}
	}
	fmt.Println(mechanism, server.Identity(), client.Finish())
	// Output:
	// 250 AUTH [PLAIN LOGIN]
	// PLAIN alice <nil>
}
