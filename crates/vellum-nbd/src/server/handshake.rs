//! A negotiation on a connection: reads options, asks the exports, writes answers.

use std::io;
use std::sync::Arc;

use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::sync::OwnedSemaphorePermit;

use crate::export::{Export, ExportInfo, Exports, OpenError};
use crate::proto::option::{self, About, Agreed, Asked, Negotiation, OPTION_HEADER, OptionHeader};
use crate::server::Shared;

/// An export that a client uses, and how it talks about it.
type Begun<E> = Option<(Arc<<E as Exports>::Export>, Agreed)>;

/// Negotiates until an export is used, or the client has had enough (`None`).
pub(super) async fn negotiate<E: Exports>(
    server: &Arc<Shared<E>>,
    reader: &mut (impl AsyncRead + Unpin),
    writer: &mut (impl AsyncWrite + Unpin),
) -> io::Result<Begun<E>> {
    writer.write_all(&option::hello()).await?;
    let mut negotiation = Negotiation::new(reader.read_u32().await?).map_err(broken)?;
    for _ in 0..server.limits.options_max {
        let mut header = [0; OPTION_HEADER];
        reader.read_exact(&mut header).await?;
        let header = OptionHeader::decode(&header).map_err(broken)?;
        let mut data = vec![0; header.length as usize];
        reader.read_exact(&mut data).await?;
        match negotiation.take(header.option, &data) {
            Asked::Answer(answer) => writer.write_all(&answer).await?,
            Asked::End(answer) => {
                writer.write_all(&answer).await?;
                return Ok(None);
            }
            Asked::List => {
                let (answer, _room) = list(server).await?;
                writer.write_all(&answer).await?;
            }
            Asked::Contexts { name, set, contexts } => {
                let answer = match info(server, name.clone()).await? {
                    Ok(_) => {
                        let answer = option::contexts(set, &contexts);
                        if set {
                            negotiation.set_contexts(name, contexts);
                        }
                        answer
                    }
                    Err(why) => option::refuse(About::Contexts { set }, &why),
                };
                writer.write_all(&answer).await?;
            }
            Asked::Info { name, go: false, wanted } => {
                let answer = match info(server, name.clone()).await? {
                    Ok(info) => negotiation.describe(false, &name, &wanted, &info),
                    Err(why) => option::refuse(About::Info { go: false }, &why),
                };
                writer.write_all(&answer).await?;
            }
            Asked::Info { name, go: true, wanted } => match open(server, name.clone()).await? {
                Ok(export) => {
                    let answer = negotiation.describe(true, &name, &wanted, &export.info());
                    writer.write_all(&answer).await?;
                    return Ok(Some((export, negotiation.agreed(&name))));
                }
                Err(why) => {
                    writer.write_all(&option::refuse(About::Info { go: true }, &why)).await?;
                }
            },
            Asked::ExportName(name) => {
                // This option has no refusal but to hang up.
                let export = open(server, name.clone()).await?.map_err(refused)?;
                writer.write_all(&negotiation.begin(&export.info())).await?;
                return Ok(Some((export, negotiation.agreed(&name))));
            }
        }
    }
    Err(io::Error::other(format!("more than {} options", server.limits.options_max)))
}

/// The answer to a request for the list, with the room that it takes among what all clients have not taken yet.
async fn list<E: Exports>(server: &Arc<Shared<E>>) -> io::Result<(Vec<u8>, OwnedSemaphorePermit)> {
    // A few at a time, since nobody knows how long one is before it is made.
    let _making = server.lists.acquire().await.map_err(io::Error::other)?;
    let this = server.clone();
    let answer = match on_server(server, async move { this.exports.list().await }).await? {
        Ok(exports) => option::list(&exports[..exports.len().min(server.limits.listed_max)]),
        Err(why) => option::refuse(About::List, &why),
    };
    let room = server.room.for_answer(answer.len()).await?;
    Ok((answer, room))
}

/// What is known of an export that nobody opens for it.
async fn info<E: Exports>(
    server: &Arc<Shared<E>>,
    name: String,
) -> io::Result<Result<ExportInfo, OpenError>> {
    let this = server.clone();
    on_server(server, async move { this.exports.info(&name).await }).await
}

/// Opens an export.
async fn open<E: Exports>(
    server: &Arc<Shared<E>>,
    name: String,
) -> io::Result<Result<Arc<E::Export>, OpenError>> {
    let this = server.clone();
    on_server(server, async move { this.exports.open(&name).await }).await
}

/// Asks the exports for something on the server's runtime: what it leaves running, or opens for others as well, must outlive the
/// connection and its runtime.
async fn on_server<E: Exports, T: Send + 'static>(
    server: &Shared<E>,
    asked: impl Future<Output = T> + Send + 'static,
) -> io::Result<T> {
    server.runtime.spawn(asked).await.map_err(io::Error::other)
}

fn broken(why: option::Broken) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, why)
}

fn refused(why: OpenError) -> io::Error {
    io::Error::other(why)
}
