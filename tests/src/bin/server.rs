//! A server of Rust that serves one client and closes the connection first, so that the TIME_WAIT is its own.
//! `server ADDRESS` has its socket from the standard library, which sets SO_REUSEADDR; `server ADDRESS plain`
//! has one as socket(2) makes it.

use std::io::Read as _;
use std::net::{TcpListener, TcpStream};
use std::os::fd::AsFd as _;

use portwatch_tests::Socket;

fn main() -> std::io::Result<()> {
    let mut arguments = std::env::args().skip(1);
    let address = arguments.next().unwrap_or_default();
    let listener = if arguments.next().is_some() {
        let socket = Socket::tcp4();
        socket.bind(&address)?;
        socket.listen(1)?;
        TcpListener::from(socket.as_fd().try_clone_to_owned()?)
    } else {
        TcpListener::bind(&address)?
    };
    let mut client = TcpStream::connect(&address)?;
    drop(listener.accept()?);
    // The end of what the server sends.
    assert_eq!(client.read(&mut [0])?, 0);
    Ok(())
}
